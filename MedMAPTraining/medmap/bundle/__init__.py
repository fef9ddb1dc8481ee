"""The bundle: one folder with everything that inference needs, verified before it is used."""
