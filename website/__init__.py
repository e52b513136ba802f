"""The documentation site: docs/ and notebooks/, and pages made from registries, configuration and records.

    make docs        # into site/, which opens without a server or a network

`python -m mkdocs build` reads mkdocs.yml, whose hook (`website.hooks`) asks `website.site` for all pages.
Nothing that stands in the code, in conf/ or in benchmarks/records/ is written here a second time.
"""
