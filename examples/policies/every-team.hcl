# One policy for all teams: each entity reaches the accounts below the name that
# its metadata has as "team". An entity without that metadata reaches nothing.
#
#     vault write identity/entity name=shop-backend metadata=team=team-a policies=wechat-every-team
#
# Whoever may write an entity's metadata decides which tokens it can read, and "+"
# as a team stands for all of them: keep identity/entity to the administrators.

path "wechat/token/{{identity.entity.metadata.team}}/*" {
  capabilities = ["read", "list"]
}

path "wechat/refresh/{{identity.entity.metadata.team}}/*" {
  capabilities = ["update"]
}

path "wechat/status/{{identity.entity.metadata.team}}/*" {
  capabilities = ["read", "list"]
}
