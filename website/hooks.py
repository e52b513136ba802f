"""What mkdocs calls: the navigation, and the pages, none of which is read from docs/ as it stands."""

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from website.site import build


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Make the site anew, and set the navigation."""
    build.cache_clear()
    config.nav = build().nav
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Put the pages of the site in the place of docs/'s own; pictures and styles stay."""
    for page in files.documentation_pages():
        files.remove(page)
    site = build()
    for path, text in site.pages.items():
        files.append(File.generated(config, path, content=text))
    for path, data in site.assets.items():
        if files.get_file_from_path(path) is None:
            files.append(File.generated(config, path, content=data))
    return files
