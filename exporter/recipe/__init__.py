"""What is asked, and what is planned: the TOML file read strictly, and the plan that refuses early."""
