# The backend of a mini program: logs users in, with their session keys, and calls
# WeChat with the account's token. mini-program/ is one.

path "wechat/code2session/team-a/shop" {
  capabilities = ["update"]
}

path "wechat/token/team-a/shop" {
  capabilities = ["read"]
}

path "wechat/refresh/team-a/shop" {
  capabilities = ["update"]
}
