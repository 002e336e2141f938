"""Geometry of the sky. Angles are degrees unless a name says otherwise; positions are ICRS; HEALPix is NESTED."""
