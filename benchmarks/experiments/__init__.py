"""The paper's experiments: networks, subnetworks, what is measured of them, and tables."""
