# Vault Agent keeps the account's token in a file, for an application that reads
# the file before each call. Run it with
#
#     vault agent -config=/etc/vault-agent/file.hcl

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
  # While Vault is away the file keeps its token, which is good for some minutes
  # more: go on trying instead of ending.
  exit_on_retry_failure = false
}

template {
  # The answer says after how many seconds the token is to be read again ("ttl"),
  # and that it is one that rotates ("rotation_period"): the Agent needs no
  # interval of its own. The account's max_ttl is how old the file can get after
  # a token was replaced by force.
  contents = "{{ with secret \"wechat/token/team-a/shop\" }}{{ .Data.access_token }}{{ end }}"

  # The file is replaced in one step: a reader sees the old token or the new one.
  # Keep it in memory.
  destination = "/run/vault-agent/wechat-token"
  perms       = "0640"

  # Do not write an empty token if the field should ever be missing.
  error_on_missing_key = true
}
