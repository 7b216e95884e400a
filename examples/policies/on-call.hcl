# On-call answers incidents: sees what is wrong, has a token that WeChat rejects
# looked at, and replaces one that leaked. It can neither read a token nor change
# an account.

path "wechat/status/*" {
  capabilities = ["read", "list"]
}

path "wechat/refresh/*" {
  capabilities = ["update"]
}

# The old token dies for everybody. WeChat allows this 20 times a day.
path "wechat/rotate/*" {
  capabilities = ["update"]
}
