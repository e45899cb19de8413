"""A server of one model over HTTP: completions, chats, predictions of a head."""
