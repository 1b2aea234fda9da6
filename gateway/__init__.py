"""HTTP in, decisions carried out."""
