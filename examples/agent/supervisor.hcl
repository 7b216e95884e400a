# Vault Agent runs an application that takes the token from its environment, and
# starts it again with each new token, which is about every two hours. Rather use
# file.hcl where you can: an application that reads a file needs no restart. Run
# it with
#
#     vault agent -config=/etc/vault-agent/supervisor.hcl

vault {
  address = "https://vault.example.com:8200"
}

auto_auth {
  method "approle" {
    config = {
      role_id_file_path   = "/etc/vault-agent/role-id"
      secret_id_file_path = "/etc/vault-agent/secret-id"

      # The Agent logs in again after a restart.
      remove_secret_id_file_after_reading = false
    }
  }
}

template_config {
  # While Vault is away the application keeps running with its token.
  exit_on_retry_failure = false
}

# Only what is rendered restarts the application. Put nothing in here that is
# different in each answer, such as "ttl".
env_template "WECHAT_ACCESS_TOKEN" {
  contents             = "{{ with secret \"wechat/token/team-a/shop\" }}{{ .Data.access_token }}{{ end }}"
  error_on_missing_key = true
}

exec {
  command                   = ["/usr/local/bin/shop"]
  restart_on_secret_changes = "always"

  # The application finishes what it is doing: after a scheduled rotation its old
  # token still works for some minutes.
  restart_stop_signal = "SIGTERM"
}
