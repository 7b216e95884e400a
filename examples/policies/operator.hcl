# Operators own the accounts: they write the AppID and the AppSecret. They need
# no token for that, and cannot replace one.

# A configuration is read back without its secret.
path "wechat/config/*" {
  capabilities = ["create", "read", "update", "delete", "list"]
}

# Is the account that was just written healthy?
path "wechat/status/*" {
  capabilities = ["read", "list"]
}
