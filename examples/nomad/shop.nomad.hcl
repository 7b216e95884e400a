# Nomad keeps the account's token in a file of the task, by the same rules as
# Vault Agent: it reads again when the answer's "ttl" says so.

job "shop" {
  group "shop" {
    task "shop" {
      driver = "docker"

      # A role of the JWT auth method with the policy for an application.
      vault {
        role = "shop"

        # A new Vault token for Nomad does not concern the task.
        change_mode = "noop"
      }

      template {
        data        = "{{ with secret \"wechat/token/team-a/shop\" }}{{ .Data.access_token }}{{ end }}"
        destination = "secrets/wechat-token"
        perms       = "0440"

        # The application reads the file before each call. The default, "restart",
        # is for one that takes the token from its environment (env = true).
        change_mode = "noop"

        error_on_missing_key = true
      }

      env {
        WECHAT_TOKEN_FILE = "${NOMAD_SECRETS_DIR}/wechat-token"
      }

      config {
        image = "registry.example.com/shop:1.0"
      }
    }
  }
}
