# A service that logs users of a mini program in: a code becomes an openid. It gets
# no session key, which it could pass for WeChat with, and no token.

path "wechat/code2session/team-a/shop" {
  capabilities = ["update"]

  denied_parameters = {
    "include_session_key" = []
  }
}
