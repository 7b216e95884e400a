package org.springframework.vault.support;

import java.util.Map;

/** Stands in for Spring's. */
public class VaultResponse {
    private final Map<String, Object> data;

    public VaultResponse(Map<String, Object> data) {
        this.data = data;
    }

    public Map<String, Object> getRequiredData() {
        return data;
    }
}
