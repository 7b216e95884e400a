# The people of team-a use all accounts below team-a/. Names are hierarchical, so
# that a glob holds the team's accounts of today and of tomorrow, and no other's.

path "wechat/token/team-a/*" {
  capabilities = ["read", "list"]
}

path "wechat/refresh/team-a/*" {
  capabilities = ["update"]
}

# A right to list a level of status/ covers all levels below it, with recursive.
path "wechat/status/team-a/*" {
  capabilities = ["read", "list"]
}
