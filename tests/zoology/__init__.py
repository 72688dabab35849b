"""The zoo: several hundred real architectures, made small, each split and compared with its unsplit self."""
