//! Checks the README and the guide: links, pages, and the pictures that the code has to agree with.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a failed set-up is a failed test"
)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use cutover::migration::{Phase, Side};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: impl AsRef<Path>) -> String {
    let path = path.as_ref();
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn guide() -> Vec<PathBuf> {
    let folders = ["docs", "docs/shapes"].map(|folder| fs::read_dir(root().join(folder)).unwrap());
    let pages = folders.into_iter().flatten().map(|entry| entry.unwrap().path());
    pages.filter(|path| path.extension().is_some_and(|ending| ending == "md")).collect()
}

/// The page's path inside of the folder `docs`.
fn in_guide(page: &Path) -> String {
    page.strip_prefix(root().join("docs")).unwrap().to_str().unwrap().to_owned()
}

/// The text outside of code blocks.
fn prose(text: &str) -> String {
    let mut in_code = false;
    let lines = text.lines().filter(|line| {
        let is_fence = line.trim_start().starts_with("```");
        in_code ^= is_fence;
        !in_code && !is_fence
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// The targets of the links within a repository.
fn links(text: &str) -> Vec<String> {
    let targets = prose(text);
    let targets = targets.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    targets.filter(|target| !target.contains("://")).map(str::to_owned).collect()
}

/// The anchors of a page's headings, as GitHub and mdbook make them.
fn anchors(text: &str) -> BTreeSet<String> {
    let headings = prose(text);
    let headings = headings.lines().filter(|line| line.starts_with('#'));
    let anchor = |heading: &str| {
        let words = heading.trim_start_matches('#').trim().to_lowercase().replace(' ', "-");
        words.chars().filter(|c| c.is_alphanumeric() || "-_".contains(*c)).collect()
    };
    headings.map(anchor).collect()
}

#[test]
fn every_link_in_the_documents_leads_somewhere() {
    let mut broken = Vec::new();
    let mut pages = guide();
    pages.extend(["README.md", "ARCHITECTURE.md"].map(|page| root().join(page)));
    for page in pages {
        let text = read(&page);
        for link in links(&text) {
            let (file, anchor) = link.split_once('#').unwrap_or((&link, ""));
            let target = if file.is_empty() { page.clone() } else { page.parent().unwrap().join(file) };
            let is_there = target.exists() && (anchor.is_empty() || anchors(&read(&target)).contains(anchor));
            if !is_there {
                broken.push(format!("{}: {link}", page.display()));
            }
        }
    }
    assert!(broken.is_empty(), "broken links:\n{}", broken.join("\n"));
}

#[test]
fn the_summary_lists_every_page() {
    let listed: BTreeSet<String> = links(&read(root().join("docs/SUMMARY.md"))).into_iter().collect();
    let name = |path: &PathBuf| in_guide(path);
    let missing: Vec<String> =
        guide().iter().map(name).filter(|page| page != "SUMMARY.md" && !listed.contains(page)).collect();
    assert!(missing.is_empty(), "add to docs/SUMMARY.md: {missing:?}");
}

#[test]
fn every_page_with_code_is_compiled() {
    let crate_root = read(root().join("src/lib.rs"));
    let name = |path: &PathBuf| in_guide(path);
    let missing: Vec<String> = guide()
        .iter()
        .filter(|path| read(path).contains("```rust"))
        .map(name)
        .filter(|page| !crate_root.contains(&format!("../docs/{page}")))
        .collect();
    assert!(missing.is_empty(), "add to the module `guide` in src/lib.rs: {missing:?}");
}

/// A comment with the path of a file stands before a block of code that is that file without its header.
#[test]
fn code_that_names_its_file_is_that_file() {
    let mut compared = 0;
    for page in guide() {
        let text = read(&page);
        for block in text.split("<!-- examples/").skip(1) {
            let (file, rest) =
                block.split_once(" -->\n```rust,no_run\n").expect("a block of code after the path");
            let shown = rest.split("\n```").next().unwrap_or_default();
            let code = read(root().join("examples").join(file));
            let code = code.lines().skip_while(|line| line.starts_with("//!") || line.is_empty());
            assert_eq!(
                shown.lines().collect::<Vec<_>>(),
                code.collect::<Vec<_>>(),
                "{}: {file}",
                page.display()
            );
            compared += 1;
        }
    }
    assert!(compared > 0);
}

/// The picture of the phases in the README: a row per side that is written or read, a column per phase.
#[test]
fn the_readme_shows_the_phases_as_they_are() {
    let readme = read(root().join("README.md"));
    let row = |name: &str| -> Vec<String> {
        let line = readme.lines().find(|line| line.starts_with(name)).expect("a row of the picture");
        line[name.len()..].split_whitespace().map(str::to_owned).collect()
    };
    let cell = |is_on: bool| if is_on { "####" } else { "." }.to_owned();
    for (side, name) in [(Side::Old, "old"), (Side::New, "new")] {
        let written = Phase::ALL.map(|phase| cell(phase.writes(side)));
        assert_eq!(row(&format!("writes {name}")), written);
        let read = Phase::ALL.map(|phase| match phase.may_read(Side::Old) && phase.may_read(Side::New) {
            true => "some".to_owned(),
            false => cell(phase.may_read(side)),
        });
        assert_eq!(row(&format!("reads {name}")), read);
    }
}

/// `docs/adoption.md` explains how a service came from `before` to `src`. Package `adopted` compiles what each commit leads to.
#[test]
fn the_diffs_of_the_adoption_lead_to_its_code() {
    let service = root().join("examples/adopted");
    let folder = std::env::temp_dir().join(format!("cutover-adoption-{}", std::process::id()));
    let source = folder.join("src");
    fs::create_dir_all(&source).unwrap();
    for file in ["main.rs", "orders.rs"] {
        fs::copy(service.join("before").join(file), source.join(file)).unwrap();
    }
    let page = read(root().join("docs/adoption.md"));
    let diffs: Vec<&str> =
        page.split("```diff\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    assert_eq!(diffs.len(), 4);
    for (number, diff) in (1..).zip(diffs) {
        let file = folder.join("diff");
        fs::write(&file, diff).unwrap();
        let mut git = std::process::Command::new("git");
        // Otherwise it looks for a repository, and for the paths in it.
        git.env("GIT_CEILING_DIRECTORIES", folder.parent().unwrap());
        let output = git.args(["apply", "diff"]).current_dir(&folder).output().unwrap();
        assert!(output.status.success(), "diff {number}: {}", String::from_utf8_lossy(&output.stderr));
        let (compiled, files) = match number {
            1 | 2 => (service.join(format!("step-{number}")), &["main.rs", "orders.rs"][..]),
            3 => (service.join("src"), &["main.rs", "orders.rs"][..]),
            _ => (service.join("src"), &["main.rs", "orders.rs", "tests.rs"][..]),
        };
        for file in files {
            let mut expected = read(compiled.join(file));
            if number == 3 {
                expected = expected.replace("#[cfg(test)]\nmod tests;\n", "");
            }
            assert_eq!(read(source.join(file)), expected, "diff {number}: {file}");
        }
    }
    fs::remove_dir_all(&folder).unwrap();
}

/// Package `services` compiles the code of the template. Its manifest has to name the same crates and versions.
#[test]
fn the_template_uses_what_is_compiled_here() {
    let template = read(root().join("examples/template/Cargo.toml"));
    let asked = read(root().join("examples/template/cargo-generate.toml"));
    for placeholder in template.split("{{").skip(1).filter_map(|rest| rest.split("}}").next()) {
        let is_known =
            placeholder == "project-name" || asked.contains(&format!("[placeholders.{placeholder}]"));
        assert!(is_known, "nothing fills {{{{{placeholder}}}}}");
    }
    let services = read(root().join("examples/services/Cargo.toml"));
    let workspace = read(root().join("Cargo.toml"));
    let dependencies = template.split("[dependencies]").nth(1).unwrap();
    for line in dependencies.lines().filter(|line| !line.is_empty()) {
        let (name, wanted) = line.split_once(" = ").unwrap();
        assert!(
            services.contains(&format!("\n{name}.workspace")) || name == "cutover",
            "{name} is not compiled"
        );
        let version = |text: &str| text.split('"').nth(1).unwrap().to_owned();
        if name != "cutover" {
            let here = workspace.lines().find(|line| line.starts_with(&format!("{name} = "))).unwrap();
            assert!(version(here).starts_with(&version(wanted)), "{name} is {here} here");
        }
    }
}

/// The names of metrics of this library in a text.
fn metrics_in(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let names = words.filter(|word| word.starts_with("cutover_"));
    // A histogram has three families.
    let family = |name: &str| {
        let endings = ["_bucket", "_count", "_sum"];
        endings.iter().find_map(|ending| name.strip_suffix(ending)).unwrap_or(name).to_owned()
    };
    names.map(family).collect()
}

#[test]
fn dashboards_and_rules_use_metrics_of_the_list() {
    let listed = metrics_in(&read(root().join("docs/metrics.md")));
    for file in ["grafana/deploy.json", "grafana/migration.json", "prometheus/rules.yaml"] {
        let used = metrics_in(&read(root().join("examples/deploy").join(file)));
        let unknown: Vec<&String> = used.difference(&listed).collect();
        assert!(!used.is_empty() && unknown.is_empty(), "{file}: not in docs/metrics.md: {unknown:?}");
    }
}

/// A limit that changes in the code changes in its row of the page, too.
#[test]
fn the_page_of_limits_has_the_numbers_of_the_code() {
    let page = read(root().join("docs/limits.md"));
    for (file, code, row) in [
        ("drain/options.rs", "head_timeout: Duration::from_secs(30)", "| a request head | 30 s |"),
        ("drain/options.rs", "idle_timeout: Duration::from_secs(65 * 60)", "| an idle connection | 65 min |"),
        ("drain/options.rs", "max_connections: 10_000", "| connections of a listener | 10,000; more wait |"),
        ("pool/share.rs", "MAX_CONNECTIONS: u32 = 1000", "| connections of a pool | 10, at most 1,000 |"),
        ("front/pools.rs", "const SIZE: u32 = 10;", "| connections of a pool | 10, at most 1,000 |"),
        ("pool/admission.rs", "QUEUE: usize = 1_000", "| requests that wait for admission | 1,000;"),
        ("metrics/bounds.rs", "MAX_BOUNDS: usize = 24", "| bounds of the histogram of durations | 24 |"),
        ("release/identity.rs", "MAX_LEN: usize = 128", "a revision or an instance | 128 bytes |"),
        ("fleet/options.rs", "fleet.len() > 63", "| the name of a fleet | 63 bytes |"),
        (
            "flags/unleash/backup/seal.rs",
            "LARGEST_STATE: usize = 16 << 20",
            "| an answer of the flag server, decompressed | 16 MiB |",
        ),
        ("flags/unleash/shape.rs", "LONGEST: usize = 500", "constraints of one of them | 500 |"),
        (
            "flags/unleash/transport.rs",
            "LONGEST_RETRY_AFTER: Duration = Duration::from_secs(60)",
            "| `Retry-After` of the flag server | 60 s;",
        ),
        ("migration/dual/repair.rs", "MAX_ATTEMPTS: u32 = 10;", "| attempts to repair a row | 10,"),
        (
            "migration/mirror/delivery.rs",
            "MAX_ATTEMPTS: u32 = 50;",
            "| attempts to deliver a row to another database | 50,",
        ),
        ("migration/mirror/plan.rs", "MAX_PENDING: i64 = 2_000", "delivery while a copy goes on | 2,000;"),
        (
            "migration/coordinator/retry.rs",
            "LONGEST: Duration = Duration::from_secs(120)",
            "| the pause before failed work is tried again | 2 min |",
        ),
    ] {
        assert!(read(root().join("src").join(file)).contains(code), "{file}: {code}");
        assert!(page.contains(row), "docs/limits.md has no row with: {row}");
    }
}
