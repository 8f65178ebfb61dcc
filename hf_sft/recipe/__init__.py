"""From YAML and overrides to a `Recipe`; what is wrong with it, all at once."""
