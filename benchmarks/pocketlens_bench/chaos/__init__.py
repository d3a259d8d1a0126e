"""What survives under load: servers killed, versions switched, certificates and keys replaced while clients ask."""
