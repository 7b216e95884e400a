# Operators own the accounts: they write the AppID and the AppSecret. They need
# no token for that, and cannot replace one. Do not add token/: an error of config/
# may name WeChat's rid of a call that carried the AppSecret, and with a token of
# the account a rid may open that call's record.

# A configuration is read back without its secret.
path "wechat/config/*" {
  capabilities = ["create", "read", "update", "delete", "list"]
}

# Is the account that was just written healthy?
# A right to list a level of status/ covers all levels below it, with recursive.
path "wechat/status/*" {
  capabilities = ["read", "list"]
}
