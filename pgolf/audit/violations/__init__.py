"""The known violations. For each there is a case, a scorer or submission that the audit must fail for the right reason, and
its legal control, the nearest scorer that keeps the rules, which it must pass.

    python -m pgolf.audit.violations        # audits all of them and prints which test caught which

Numbers V1 to V28 are those of the catalogue that the field has put together in its reviews; V0 are further ones.
"""
