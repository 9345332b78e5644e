//! `cutover plan --write-files`: the schema changes of a migration as files for a team's own tool.

use std::fs::{OpenOptions, create_dir_all};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use cutover::ledger::Ledger;
use cutover::migration::admin::{AdminError, MigrationFiles, migration_files};

use crate::arguments::Arguments;
use crate::{failed, say};

/// Writes the files of a migration and prints their paths.
pub(crate) async fn run(
    ledger: &Ledger,
    arguments: &Arguments,
    migration: &str,
    directory: &Path,
) -> Result<ExitCode, AdminError> {
    let Some(files) = migration_files(ledger, migration).await? else {
        let problem = format!(
            "no build has published statements of {migration:?} for files; start a build that declares it with a \
             ColumnMigration, a TableMigration or a SchemaChange. What a WiderKey does needs locks and retries that a file \
             cannot have, so the library does it: `cutover plan {migration}` shows the statements"
        );
        failed(arguments, &problem);
        return Ok(ExitCode::from(1));
    };
    match write(&files, directory) {
        Ok(paths) => {
            let paths: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
            say(arguments, &paths, || {
                let how = match &*paths {
                    [_] => {
                        "With `.schema_by_files()` in the plan, this file makes the drop. Without it, the library makes the \
                        whole change, and the file does the same in a new database"
                    }
                    _ => "The plan needs `.schema_by_files()`",
                };
                let rename = format!("Rename the last file to `.sql` when {migration} is in `contract`");
                format!("{}\n{how}. {rename}.\n", paths.join("\n"))
            });
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => {
            failed(arguments, &format!("could not write the files: {error}"));
            Ok(ExitCode::from(1))
        }
    }
}

/// Writes the files that have statements into a directory, and returns their paths. An existing file is never replaced.
fn write(files: &MigrationFiles, directory: &Path) -> io::Result<Vec<PathBuf>> {
    create_dir_all(directory)?;
    let name: String = files
        .name
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' })
        .collect();
    let time = jiff::Timestamp::now();
    // The names that `sqlx migrate add` gives. Two versions must differ, and the drop comes last.
    let version =
        |seconds: i64| (time + jiff::SignedDuration::from_secs(seconds)).strftime("%Y%m%d%H%M%S").to_string();
    let expand = directory.join(format!("{}_{name}_expand.sql", version(0)));
    let contract = directory.join(format!("{}_{name}_contract.sql.later", version(1)));
    let mut paths = Vec::new();
    for (path, text) in [(expand, &files.expand), (contract, &files.contract)] {
        if !text.is_empty() {
            create(&path, text)?;
            paths.push(path);
        }
    }
    Ok(paths)
}

fn create(path: &Path, text: &str) -> io::Result<()> {
    let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    let mut file = OpenOptions::new().write(true).create_new(true).open(path).map_err(named)?;
    file.write_all(text.as_bytes()).map_err(named)
}
