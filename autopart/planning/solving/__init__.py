"""What planning asks of integer programs: processes that solve in parallel, limits, versions."""
