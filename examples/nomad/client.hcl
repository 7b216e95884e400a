# For the configuration of each Nomad client that runs tasks with a token: beside
# its other files, in the folder that "nomad agent -config" names.

client {
  enabled = true

  template {
    # By default a template fails its task when twelve reads in a row have failed,
    # which an outage of Vault of some minutes is enough for: an application that
    # could have gone on with its token, and with all that needs none, is stopped.
    # 0 is for ever; the wait between two tries grows to a minute.
    vault_retry {
      attempts    = 0
      max_backoff = "1m"
    }
  }
}
