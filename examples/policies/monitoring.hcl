# Monitoring sees the health of every account, and never a token or a secret.

# A right to list a level of status/ covers all levels below it, with recursive.
path "wechat/status/*" {
  capabilities = ["read", "list"]
}

# For Prometheus.
path "wechat/metrics" {
  capabilities = ["read"]
}
