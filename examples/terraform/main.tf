# The mount, an account with its settings, and a policy, in this one file. The
# AppSecret is neither in it nor in Terraform's state or plan, nor on a command
# line: it is in the environment of the one who applies,
#
#     read -rs WECHAT_SECRET && export WECHAT_SECRET
#     terraform apply
#
# which needs the vault program, with VAULT_ADDR and VAULT_TOKEN set, and
# VAULT_NAMESPACE where there are namespaces.

terraform {
  required_version = ">= 1.4"

  required_providers {
    vault = {
      source  = "hashicorp/vault"
      version = "~> 5.0"
    }
  }
}

variable "appid" {
  type        = string
  description = "The account's AppID."
}

variable "secret_version" {
  type        = number
  description = "Count this up to have a new AppSecret written."
  default     = 1
}

variable "plugin_version" {
  type        = string
  description = "The version as which the plugin is registered, such as v1.0.0."
}

# The plugin is in Vault's catalog already; see the README on how to install it.
resource "vault_mount" "wechat" {
  path = "wechat"
  type = "vault-plugin-secrets-wechat"

  # Without a version Vault takes the one that it thinks the newest. For an upgrade
  # register the new one, apply this, and reload every mount of the plugin:
  #
  #     vault plugin reload -plugin=vault-plugin-secrets-wechat
  plugin_version = var.plugin_version

  lifecycle {
    # With the mount all its accounts would be gone, those of other files too.
    prevent_destroy = true
  }
}

# What vault_generic_endpoint writes is kept in the state in the clear, so it is
# not what writes the secret. Vault tries the credentials before it stores them.
resource "terraform_data" "account" {
  triggers_replace = [var.appid, var.secret_version]

  provisioner "local-exec" {
    command = "printf %s \"$WECHAT_SECRET\" | vault write \"$CONFIG\" appid=\"$APPID\" secret=-"
    environment = {
      CONFIG = "${vault_mount.wechat.path}/config/team-a/shop"
      APPID  = var.appid
    }
  }
}

# The settings, in seconds as they are read back. A write changes the fields that
# it names, and no other. Destroying this deletes the account.
resource "vault_generic_endpoint" "account" {
  depends_on = [terraform_data.account]

  path                 = "${vault_mount.wechat.path}/config/team-a/shop"
  ignore_absent_fields = true

  data_json = jsonencode({
    max_ttl       = 240
    sync_interval = 300
  })

  lifecycle {
    prevent_destroy = true
  }
}

# The application reads the token of its account, and reports it when WeChat has
# rejected it.
resource "vault_policy" "shop" {
  name = "wechat-shop"

  policy = <<-EOT
    path "${vault_mount.wechat.path}/token/team-a/shop" {
      capabilities = ["read"]
    }

    path "${vault_mount.wechat.path}/refresh/team-a/shop" {
      capabilities = ["update"]
    }
  EOT
}

# There is no data source for the token here: it would be in the state, and old
# when it is used. Applications read it from Vault.
