package com.example.shop;

import java.time.Duration;
import java.util.Map;
import java.util.logging.Level;
import java.util.logging.Logger;
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
    private static final Logger LOG = Logger.getLogger(WechatToken.class.getName());
    private static final Duration RETRY = Duration.ofSeconds(5);

    private final VaultOperations vault;
    private final String mount;
    private final String account;
    private String token;
    private long readAgain = System.nanoTime(); // on a clock that is never set

    public WechatToken(
            VaultOperations vault,
            @Value("${wechat.mount:wechat}") String mount,
            @Value("${wechat.account}") String account) {
        this.vault = vault;
        this.mount = mount;
        this.account = account;
    }

    /** Returns a token that WeChat accepts, from memory while its ttl lasts. */
    public synchronized String get() {
        if (token != null && System.nanoTime() - readAgain < 0) {
            return token;
        }
        Duration wait;
        try {
            Map<String, Object> data = required(vault.read(mount + "/token/" + account));
            token = (String) data.get("access_token");
            wait = Duration.ofSeconds(((Number) data.get("ttl")).longValue());
        } catch (RuntimeException failure) {
            if (token == null) {
                throw failure;
            }
            // The token is good for two minutes more: Vault may be back by then.
            LOG.log(Level.WARNING, "Vault gave no token; keeping the last one", failure);
            wait = RETRY;
        }
        readAgain = System.nanoTime() + wait.toNanos();
        return token;
    }

    /**
     * Reports a token with which WeChat answered 40001, 40014 or 42001. If this
     * returns true there is another one: get it, and repeat the call once. If it
     * returns false WeChat has no newer one: the fault lies elsewhere, or
     * is over in half a minute, after which the call may be repeated once.
     */
    public synchronized boolean rejected(String rejected) {
        if (!rejected.equals(token)) {
            return true; // another thread was here before
        }
        Map<String, Object> data =
                required(vault.write(mount + "/refresh/" + account, Map.of("rejected_token", rejected)));
        if (!Boolean.TRUE.equals(data.get("changed"))) {
            return false;
        }
        readAgain = System.nanoTime();
        return true;
    }

    private static Map<String, Object> required(VaultResponse response) {
        if (response == null) {
            throw new IllegalStateException("Vault gave no answer");
        }
        return response.getRequiredData();
    }
}
