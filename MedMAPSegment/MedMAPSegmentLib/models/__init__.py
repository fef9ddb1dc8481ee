"""The models that the panel offers: listing, importing, deleting. No Qt and no torch."""
