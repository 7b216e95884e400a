# A pipeline that hands the token on, and need not see it: Vault gives it out
# only wrapped, for at most five minutes. It can be unwrapped once: a recipient whose
# unwrapping fails knows that the token was taken on the way.
#
#     vault read -wrap-ttl=60s wechat/token/team-a/shop
#
# Unwrap it soon: its ttl counts from the time at which it was wrapped.

path "wechat/token/team-a/shop" {
  capabilities     = ["read"]
  min_wrapping_ttl = "1s"
  max_wrapping_ttl = "5m"
}
