# Nomad (1.7 or later) keeps the account's token in a file of the task: it reads
# again when the answer's "ttl" says so, as Vault Agent does.
#
# Unlike the Agent it gives up: on a client with the default configuration a task
# fails when twelve reads in a row have failed. client.hcl, beside this file, has
# the client go on trying.

job "shop" {
  group "shop" {
    task "shop" {
      driver = "docker"

      # A role of the JWT auth method with the policy for an application. Nomad
      # logs in with the task's identity, which the servers give it if they have a
      # default_identity for Vault.
      vault {
        role = "shop"

        # A new Vault token for Nomad does not concern the task.
        change_mode = "noop"
      }

      template {
        data        = "{{ with secret \"wechat/token/team-a/shop\" }}{{ .Data.access_token }}{{ end }}"
        destination = "secrets/wechat-token"

        # The file is for one user: the one that the image runs as, by its numbers.
        # Without them it belongs to root, and that user could not read it.
        perms = "0400"
        uid   = 1000
        gid   = 1000

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
