import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.net.URI;
import java.net.URLEncoder;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.Map;
import java.util.Set;
import java.util.regex.Matcher;
import java.util.regex.Pattern;

/**
 * Calls WeChat with a token from Vault, once for each line of its input: {@code
 * java Shop.java}, with a JDK 11 or later and nothing else.
 *
 * <p>The environment gives VAULT_ADDR, VAULT_TOKEN and the account's name as
 * WECHAT_ACCOUNT; where they differ from the default, VAULT_NAMESPACE (none),
 * WECHAT_MOUNT (wechat) and WECHAT_URL (https://api.weixin.qq.com).
 */
public final class Shop {
    private static final Set<String> REJECTED = Set.of("40001", "40014", "42001");
    private static final HttpClient HTTP =
            HttpClient.newBuilder().connectTimeout(Duration.ofSeconds(10)).build();

    public static void main(String[] args) throws IOException, InterruptedException {
        Map<String, String> env = System.getenv();
        String wechat = env.getOrDefault("WECHAT_URL", "https://api.weixin.qq.com");
        Tokens tokens = new Tokens(
                env.get("VAULT_ADDR"),
                env.get("VAULT_TOKEN"),
                env.getOrDefault("VAULT_NAMESPACE", ""),
                env.getOrDefault("WECHAT_MOUNT", "wechat"),
                env.get("WECHAT_ACCOUNT"));
        BufferedReader lines = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        while (lines.readLine() != null) {
            try {
                System.out.println("ok: " + callbackIPs(wechat, tokens));
            } catch (IOException failure) {
                System.out.println("failed: " + failure.getMessage());
            }
        }
    }

    /**
     * Stands for any call of WeChat. One that is answered with a rejection of the
     * token is repeated once, if Vault says that there is another token.
     */
    static String callbackIPs(String wechat, Tokens tokens) throws IOException, InterruptedException {
        for (boolean repeated = false; ; repeated = true) {
            String token = tokens.get();
            String query = "?access_token=" + URLEncoder.encode(token, StandardCharsets.UTF_8);
            String answer = call(HttpRequest.newBuilder(URI.create(wechat + "/cgi-bin/getcallbackip" + query)));
            String errcode = field(answer, "errcode", "0");
            if (errcode.equals("0")) {
                return field(answer, "ip_list");
            }
            if (repeated || !REJECTED.contains(errcode) || !tokens.rejected(token)) {
                throw new IOException("WeChat: errcode " + errcode + ": " + field(answer, "errmsg", ""));
            }
        }
    }

    /** Hands out the access token of an account, for any number of threads. */
    static final class Tokens {
        private final String vault;
        private final String vaultToken;
        private final String namespace;
        private final String mount;
        private final String account;
        private String token;
        private long readAgain = System.nanoTime();

        Tokens(String vault, String vaultToken, String namespace, String mount, String account) {
            this.vault = vault;
            this.vaultToken = vaultToken;
            this.namespace = namespace;
            this.mount = mount;
            this.account = account;
        }

        /** Returns a token that WeChat accepts, from memory while its ttl lasts. */
        synchronized String get() throws IOException, InterruptedException {
            if (token != null && System.nanoTime() - readAgain < 0) {
                return token;
            }
            long seconds;
            try {
                String answer = ask("token", null);
                seconds = Long.parseLong(field(answer, "ttl"));
                token = field(answer, "access_token");
            } catch (IOException failure) {
                if (token == null) {
                    throw failure;
                }
                // The token is good for two minutes more: Vault may be back by then.
                System.err.println(failure.getMessage());
                seconds = 5;
            }
            readAgain = System.nanoTime() + Duration.ofSeconds(seconds).toNanos();
            return token;
        }

        /**
         * Reports a token that WeChat rejected. If there is another one it returns
         * true; otherwise WeChat has no newer one: the fault lies elsewhere, or
         * is over in half a minute, after which the call may be repeated once.
         */
        synchronized boolean rejected(String rejected) throws IOException, InterruptedException {
            if (!rejected.equals(token)) {
                return true; // another thread was here before
            }
            // A token has no character that JSON would have escaped.
            String answer = ask("refresh", "{\"rejected_token\":\"" + rejected + "\"}");
            if (!field(answer, "changed").equals("true")) {
                return false;
            }
            readAgain = System.nanoTime();
            return true;
        }

        private String ask(String area, String body) throws IOException, InterruptedException {
            URI uri = URI.create(vault + "/v1/" + mount + "/" + area + "/" + account);
            HttpRequest.Builder request = HttpRequest.newBuilder(uri).header("X-Vault-Token", vaultToken);
            if (!namespace.isEmpty()) {
                request.header("X-Vault-Namespace", namespace);
            }
            if (body != null) {
                request.POST(BodyPublishers.ofString(body));
            }
            try {
                return call(request);
            } catch (IOException failure) {
                throw new IOException("Vault: " + failure, failure);
            }
        }
    }

    /** Sends a request and returns the answer's body. */
    static String call(HttpRequest.Builder request) throws IOException, InterruptedException {
        HttpResponse<String> answer = HTTP.send(
                request.timeout(Duration.ofSeconds(10)).build(), HttpResponse.BodyHandlers.ofString());
        if (answer.statusCode() != 200) {
            throw new IOException("HTTP " + answer.statusCode() + " " + answer.body());
        }
        return answer.body();
    }

    /**
     * Finds a field's value in JSON. The JDK has no parser; for the few fields that
     * are needed here, whose names occur once, this does. Use the one that your
     * application has anyway.
     */
    static String field(String json, String name, String otherwise) {
        Matcher m = Pattern.compile("\"" + name + "\"\\s*:\\s*(?:\"([^\"]*)\"|(\\[[^\\]]*\\]|[^,}\\s]+))").matcher(json);
        if (!m.find()) {
            return otherwise;
        }
        return m.group(1) != null ? m.group(1) : m.group(2);
    }

    private static String field(String json, String name) throws IOException {
        String value = field(json, name, null);
        if (value == null) {
            throw new IOException("the answer has no " + name);
        }
        return value;
    }
}
