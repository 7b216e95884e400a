# The mount, an account with its settings, and a policy. The AppSecret is neither
# in this file nor in Terraform's state or plan, nor on a command line: it is in
# the environment of the one who applies,
#
#     read -rs WECHAT_SECRET && export WECHAT_SECRET
#     terraform apply
#
# which needs the vault program, with VAULT_ADDR and VAULT_TOKEN set.

terraform {
  required_version = ">= 1.4"

  required_providers {
    vault = {
      source  = "hashicorp/vault"
      version = ">= 4.0"
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

# The plugin is in Vault's catalog already; see the README on how to install it.
resource "vault_mount" "wechat" {
  path = "wechat"
  type = "vault-plugin-secrets-wechat"
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
}

resource "vault_policy" "shop" {
  name   = "wechat-shop"
  policy = file("${path.module}/../policies/application.hcl")
}

# There is no data source for the token here: it would be in the state, and old
# when it is used. Applications read it from Vault.
