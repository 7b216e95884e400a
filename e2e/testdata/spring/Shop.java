import com.example.shop.WechatToken;
import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.net.URI;
import java.net.URLEncoder;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse.BodyHandlers;
import java.nio.charset.StandardCharsets;
import java.util.HashMap;
import java.util.Map;
import java.util.Set;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import org.springframework.vault.core.VaultOperations;
import org.springframework.vault.support.VaultResponse;

/**
 * Drives the example class for Spring as an application would, once for each line
 * of its input, with a real Vault behind a stand-in for Spring's client.
 */
public final class Shop {
    private static final Set<String> REJECTED = Set.of("40001", "40014", "42001");
    private static final HttpClient HTTP = HttpClient.newHttpClient();
    private static final Pattern FIELD =
            Pattern.compile("\"(\\w+)\"\\s*:\\s*(?:\"([^\"]*)\"|(true|false)|(\\d+)|(\\[[^\\]]*\\]))");

    public static void main(String[] args) throws IOException, InterruptedException {
        Map<String, String> env = System.getenv();
        WechatToken tokens = new WechatToken(
                new Vault(), env.getOrDefault("WECHAT_MOUNT", "wechat"), env.get("WECHAT_ACCOUNT"));
        BufferedReader lines = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        while (lines.readLine() != null) {
            try {
                System.out.println("ok: " + callbackIPs(env.get("WECHAT_URL"), tokens));
            } catch (RuntimeException failure) {
                System.out.println("failed: " + failure.getMessage());
            }
        }
    }

    private static Object callbackIPs(String wechat, WechatToken tokens) {
        for (boolean repeated = false; ; repeated = true) {
            String token = tokens.get();
            String query = "?access_token=" + URLEncoder.encode(token, StandardCharsets.UTF_8);
            Map<String, Object> answer = call(HttpRequest.newBuilder(URI.create(wechat + "/cgi-bin/getcallbackip" + query)));
            String errcode = String.valueOf(answer.getOrDefault("errcode", 0));
            if (errcode.equals("0")) {
                return answer.get("ip_list");
            }
            if (repeated || !REJECTED.contains(errcode) || !tokens.rejected(token)) {
                throw new IllegalStateException("WeChat: errcode " + errcode);
            }
        }
    }

    /** Does what Spring's VaultTemplate does with an answer: an error is an exception. */
    private static final class Vault implements VaultOperations {
        @Override
        public VaultResponse read(String path) {
            return new VaultResponse(call(request(path)));
        }

        @Override
        public VaultResponse write(String path, Object body) {
            Object token = ((Map<?, ?>) body).get("rejected_token");
            return new VaultResponse(call(request(path)
                    .POST(HttpRequest.BodyPublishers.ofString("{\"rejected_token\":\"" + token + "\"}"))));
        }

        private static HttpRequest.Builder request(String path) {
            Map<String, String> env = System.getenv();
            HttpRequest.Builder request = HttpRequest.newBuilder(URI.create(env.get("VAULT_ADDR") + "/v1/" + path))
                    .header("X-Vault-Token", env.get("VAULT_TOKEN"));
            if (env.containsKey("VAULT_NAMESPACE")) {
                request.header("X-Vault-Namespace", env.get("VAULT_NAMESPACE"));
            }
            return request;
        }
    }

    /** Sends a request, and returns the fields of the answer, those of all levels in one. */
    private static Map<String, Object> call(HttpRequest.Builder request) {
        try {
            var answer = HTTP.send(request.build(), BodyHandlers.ofString());
            if (answer.statusCode() != 200) {
                throw new IllegalStateException("HTTP " + answer.statusCode());
            }
            Map<String, Object> fields = new HashMap<>();
            for (Matcher m = FIELD.matcher(answer.body()); m.find(); ) {
                Object value = m.group(2) != null ? m.group(2)
                        : m.group(3) != null ? Boolean.valueOf(m.group(3))
                        : m.group(4) != null ? Integer.valueOf(m.group(4)) : m.group(5);
                fields.put(m.group(1), value);
            }
            return fields;
        } catch (IOException | InterruptedException failure) {
            throw new IllegalStateException(failure);
        }
    }
}
