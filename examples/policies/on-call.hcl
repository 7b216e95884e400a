# On-call answers incidents: sees what is wrong, has a token that WeChat rejects
# looked at, replaces one that leaked, tries what was mended, and has WeChat count
# calls from zero again. It can neither read a token nor change an account.
#
# An error of rotate/ or clear-quota/ may name WeChat's rid of a call that carried
# the AppSecret, and with a token of the account a rid may open that call's record:
# keep both from a reader of token/. The same holds for config/, and for the server's
# log.

# A right to list a level of status/ covers all levels below it, with recursive.
path "wechat/status/*" {
  capabilities = ["read", "list"]
}

path "wechat/refresh/*" {
  capabilities = ["update"]
}

# verify=true has the stored credentials tried now, and ends the engine's wait. No
# other field may be written. Without "create" a mistyped name is denied.
path "wechat/config/*" {
  capabilities = ["update"]

  allowed_parameters = {
    "verify" = [true, "true"]
  }
}

# The old token dies for all its users. WeChat allows this 20 times a day.
path "wechat/rotate/*" {
  capabilities = ["update"]
}

# WeChat allows this ten times a month.
path "wechat/clear-quota/*" {
  capabilities = ["update"]
}
