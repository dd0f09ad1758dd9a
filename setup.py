"Installs subpixel_nb from what settings.ini says; nothing is stated twice."

from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
config = ConfigParser(delimiters=['='])
config.read(here / 'settings.ini', encoding='utf-8')
settings = config['DEFAULT']

# Each NAME_requirements is an extra, and part of dev.
extras = {
    key.removesuffix('_requirements'): settings[key].split()
    for key in settings
    if key.endswith('_requirements') and key != 'dev_requirements'
}

setup(
    name=settings['lib_name'],
    version=settings['version'],
    description=settings['description'],
    long_description=(here / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    author=settings['author'],
    license='Apache-2.0',
    keywords=settings['keywords'],
    python_requires=f'>={settings["min_python"]}',
    packages=find_packages(include=[settings['lib_path'], settings['lib_path'] + '.*']),
    package_data={settings['lib_path']: ['models/*']},  # the networks that ship, and their cards
    install_requires=settings['requirements'].split(),
    extras_require=extras
    | {'dev': [*settings['dev_requirements'].split(), *(name for group in extras.values() for name in group)]},
)
