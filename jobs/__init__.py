"""Entry points for `ray job submit`: recipes over igd, each with its YAML configurations."""
