# One policy for all teams: each entity reaches the accounts below the name that
# its metadata has as "team". An entity without that metadata reaches nothing.
#
#     vault write identity/entity name=shop-backend metadata=team=team-a policies=wechat-every-team
#
# A writer of an entity's metadata decides which tokens it can read: keep
# identity/entity to the administrators. In Vault before 1.19.17, 1.20.11, 1.21.6
# and 2.0.1 "+" as a team stands for all of them; later ones refuse "+" and "*" in
# what a template renders.

path "wechat/token/{{identity.entity.metadata.team}}/*" {
  capabilities = ["read", "list"]
}

path "wechat/refresh/{{identity.entity.metadata.team}}/*" {
  capabilities = ["update"]
}

# A right to list a level of status/ covers all levels below it, with recursive.
path "wechat/status/{{identity.entity.metadata.team}}/*" {
  capabilities = ["read", "list"]
}
