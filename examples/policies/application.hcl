# An application reads the token of one account, and reports it when WeChat has
# rejected it. A report never replaces a token by force, so it is safe to grant.

path "wechat/token/team-a/shop" {
  capabilities = ["read"]
}

path "wechat/refresh/team-a/shop" {
  capabilities = ["update"]
}
