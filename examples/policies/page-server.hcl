# The server of pages that use WeChat's JS-SDK: signatures for their addresses. It
# gets neither the ticket that they are made with, nor a token. js-sdk/ is one.

path "wechat/sign/team-a/shop" {
  capabilities = ["read"]
}
