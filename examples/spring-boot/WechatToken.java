package com.example.shop;

import java.time.Duration;
import java.time.Instant;
import java.util.Map;
import org.springframework.beans.factory.annotation.Value;
import org.springframework.stereotype.Component;
import org.springframework.vault.core.VaultOperations;
import org.springframework.vault.support.VaultResponse;

/**
 * The WeChat access token of an account. Inject it, and call {@link #get} before
 * each call of WeChat.
 *
 * <p>The token has no lease, so Spring's lease container would read it once and
 * keep it until it is dead. Instead the answer's {@code ttl} says when to read
 * again.
 */
@Component
public class WechatToken {
    private final VaultOperations vault;
    private final String account;
    private String token;
    private Instant readAgain = Instant.MIN;

    public WechatToken(VaultOperations vault, @Value("${wechat.account}") String account) {
        this.vault = vault;
        this.account = account;
    }

    /** Returns a token that WeChat accepts, from memory while its ttl lasts. */
    public synchronized String get() {
        if (Instant.now().isBefore(readAgain)) {
            return token;
        }
        Map<String, Object> data = required(vault.read("wechat/token/" + account));
        token = (String) data.get("access_token");
        readAgain = Instant.now().plus(Duration.ofSeconds(((Number) data.get("ttl")).longValue()));
        return token;
    }

    /**
     * Reports a token with which WeChat answered 40001, 40014 or 42001. If this
     * returns true there is another one: get it, and repeat the call once. If it
     * returns false WeChat stands by the token, and the fault lies elsewhere.
     */
    public synchronized boolean rejected(String rejected) {
        if (!rejected.equals(token)) {
            return true; // another thread was here before
        }
        Map<String, Object> data =
                required(vault.write("wechat/refresh/" + account, Map.of("rejected_token", rejected)));
        if (!Boolean.TRUE.equals(data.get("changed"))) {
            return false;
        }
        readAgain = Instant.MIN;
        return true;
    }

    private static Map<String, Object> required(VaultResponse response) {
        if (response == null) {
            throw new IllegalStateException("Vault gave no answer");
        }
        return response.getRequiredData();
    }
}
