package org.springframework.vault.core;

import org.springframework.vault.support.VaultResponse;

/** Stands in for Spring's, with the operations that the example uses. */
public interface VaultOperations {
    VaultResponse read(String path);

    VaultResponse write(String path, Object body);
}
