# Monitoring sees the health of every account, and never a token or a secret.

path "wechat/status/*" {
  capabilities = ["read", "list"]
}

# For Prometheus.
path "wechat/metrics" {
  capabilities = ["read"]
}
