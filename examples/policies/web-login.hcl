# A site whose users log in with WeChat: a code becomes an openid, and a token of the
# user, which is not the account's.

path "wechat/oauth2/team-a/shop" {
  capabilities = ["update"]
}
