"""reid.v1 on the wire: what every call goes through, messages and values, errors and statuses."""
