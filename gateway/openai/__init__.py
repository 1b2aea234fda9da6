"""The OpenAI surface: payloads in, events and errors out."""
