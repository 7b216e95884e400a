# An administrator of Vault installs, upgrades and removes the plugin, and has another
# node take over. A token with this policy reaches no account. Still guard it like the
# AppSecrets: a registered program is what Vault runs.

path "sys/plugins/catalog/secret/vault-plugin-secrets-wechat" {
  capabilities = ["create", "read", "update", "delete", "sudo"]
}

# A pin holds every mount at one version.
path "sys/plugins/pins/secret/vault-plugin-secrets-wechat" {
  capabilities = ["create", "read", "update", "delete"]
}

# The command line reloads by the first path, up to Vault 1.15 and in OpenBao by the
# second.
path "sys/plugins/reload/unknown/vault-plugin-secrets-wechat" {
  capabilities = ["create", "update"]
}

path "sys/plugins/reload/backend" {
  capabilities = ["create", "update"]
}

path "sys/mounts" {
  capabilities = ["read"]
}

path "sys/mounts/wechat" {
  capabilities = ["create", "read", "update", "delete"]
}

path "sys/mounts/wechat/tune" {
  capabilities = ["create", "read", "update"]
}

path "sys/step-down" {
  capabilities = ["update", "sudo"]
}
