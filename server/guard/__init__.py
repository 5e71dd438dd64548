"""Who may come in: keys and what they allow, rates, the server's certificate, and a record of what was changed."""
