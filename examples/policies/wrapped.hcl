# A pipeline that hands the token on, and need not see it: Vault gives it out
# only wrapped, for at most five minutes. Who unwraps it first is the only one,
# and the one it was meant for notices if that was somebody else.
#
#     vault read -wrap-ttl=60s wechat/token/team-a/shop
#
# Unwrap it soon: its ttl counts from the time at which it was wrapped.

path "wechat/token/team-a/shop" {
  capabilities     = ["read"]
  min_wrapping_ttl = "1s"
  max_wrapping_ttl = "5m"
}
