//! Every `unsafe` of the workspace is in `docs/unsafe.md`, in a place where it may be, with its reasons above it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use syn::spanned::Spanned;
use syn::visit::{self, Visit};

/// Where `unsafe` may be: the two modules below the seam, and the glue to the service manager.
const ALLOWED: [&str; 3] =
    ["crates/hyperv/src/windows/com.rs", "crates/hyperv/src/windows/calls.rs", "crates/agent/src/service/"];

#[test]
fn the_list_is_the_code() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut in_code = BTreeMap::new();
    let mut problems = Vec::new();
    for file in rust_files(root) {
        let name = file.strip_prefix(root).unwrap().to_str().unwrap().replace('\\', "/");
        let source = fs::read_to_string(&file).unwrap();
        let found = find_unsafe(&source).unwrap_or_else(|error| panic!("{name}: {error}"));
        if !found.is_empty() && !ALLOWED.iter().any(|allowed| name.starts_with(allowed)) {
            problems.push(format!("{name}: `unsafe` has no place here"));
        }
        for block in found {
            if !block.has_reason {
                problems.push(format!("{name}:{}: no SAFETY comment above it", block.line));
            }
            *in_code.entry((name.clone(), block.function)).or_insert(0) += 1;
        }
    }

    let listed = read_list(&fs::read_to_string(root.join("docs/unsafe.md")).unwrap());
    for ((file, function), count) in &in_code {
        match listed.get(&(file.clone(), function.clone())) {
            Some(listed) if listed == count => {}
            Some(listed) => problems.push(format!("docs/unsafe.md: {listed} instead of {count} in {file}, {function}")),
            None => problems.push(format!("docs/unsafe.md lacks: | `{file}` | `{function}` | {count} | why |")),
        }
    }
    for (file, function) in listed.keys().filter(|key| !in_code.contains_key(key)) {
        problems.push(format!("docs/unsafe.md lists what is gone: {file}, {function}"));
    }
    assert!(problems.is_empty(), "\n{}", problems.join("\n"));
}

/// The rows `| file | function | count | why |` of the list, which must all say why.
fn read_list(text: &str) -> BTreeMap<(String, String), usize> {
    let mut listed = BTreeMap::new();
    for row in text.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = row.split('|').map(|cell| cell.trim().trim_matches('`')).collect();
        let [_, file, function, count, why, _] = cells[..] else { panic!("docs/unsafe.md: four columns in {row}") };
        assert!(why.len() > 10, "docs/unsafe.md: say why in {row}");
        let count = count.parse().unwrap_or_else(|_| panic!("docs/unsafe.md: a count in {row}"));
        let before = listed.insert((file.to_owned(), function.to_owned()), count);
        assert_eq!(before, None, "docs/unsafe.md: twice {row}");
    }
    listed
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}

/// One `unsafe` in the code.
#[derive(Debug, PartialEq)]
struct Unsafe {
    /// The function that holds it, with the type that it belongs to.
    function: String,
    line: usize,
    has_reason: bool,
}

fn find_unsafe(source: &str) -> syn::Result<Vec<Unsafe>> {
    let file = syn::parse_file(source)?;
    let mut finder =
        Finder { lines: source.lines().collect(), scope: Vec::new(), starts: Vec::new(), found: Vec::new() };
    finder.visit_file(&file);
    Ok(finder.found)
}

struct Finder<'s> {
    lines: Vec<&'s str>,
    /// Types and functions around the place, outermost first.
    scope: Vec<String>,
    /// First lines of the statements and arms around it: a reason may stand above each.
    starts: Vec<usize>,
    found: Vec<Unsafe>,
}

impl Finder<'_> {
    fn record(&mut self, line: usize) {
        // Above the block itself, or above the innermost statement that begins a line before it.
        let mut places = vec![line];
        places.extend(self.starts.last());
        let has_reason = places.into_iter().any(|line| self.reason_above(line));
        let function = self.scope.join("::");
        self.found.push(Unsafe { function, line, has_reason });
    }

    /// Whether the comment that ends right above `line`, which counts from 1, gives a reason.
    fn reason_above(&self, line: usize) -> bool {
        let above = self.lines[..line - 1].iter().rev().map(|line| line.trim_start());
        above.take_while(|line| line.starts_with("//")).any(|line| line.starts_with("// SAFETY: "))
    }

    fn within(&mut self, name: String, visit: impl FnOnce(&mut Self)) {
        self.scope.push(name);
        visit(self);
        self.scope.pop();
    }

    fn starting_at(&mut self, line: usize, visit: impl FnOnce(&mut Self)) {
        self.starts.push(line);
        visit(self);
        self.starts.pop();
    }
}

impl<'ast> Visit<'ast> for Finder<'_> {
    fn visit_expr_unsafe(&mut self, block: &'ast syn::ExprUnsafe) {
        self.record(block.unsafe_token.span.start().line);
        visit::visit_expr_unsafe(self, block);
    }

    fn visit_stmt(&mut self, statement: &'ast syn::Stmt) {
        self.starting_at(statement.span().start().line, |finder| visit::visit_stmt(finder, statement));
    }

    fn visit_arm(&mut self, arm: &'ast syn::Arm) {
        self.starting_at(arm.span().start().line, |finder| visit::visit_arm(finder, arm));
    }

    fn visit_item_fn(&mut self, function: &'ast syn::ItemFn) {
        let line = function.span().start().line;
        self.within(function.sig.ident.to_string(), |finder| {
            finder.starting_at(line, |finder| visit::visit_item_fn(finder, function));
        });
    }

    fn visit_impl_item_fn(&mut self, function: &'ast syn::ImplItemFn) {
        let line = function.span().start().line;
        self.within(function.sig.ident.to_string(), |finder| {
            finder.starting_at(line, |finder| visit::visit_impl_item_fn(finder, function));
        });
    }

    fn visit_signature(&mut self, signature: &'ast syn::Signature) {
        if let syn::Safety::Unsafe(token) = &signature.safety {
            self.record(token.span.start().line);
        }
        visit::visit_signature(self, signature);
    }

    fn visit_item_impl(&mut self, item: &'ast syn::ItemImpl) {
        let name = match &*item.self_ty {
            syn::Type::Path(path) => path.path.segments.last().map(|segment| segment.ident.to_string()),
            _ => None,
        };
        self.within(name.unwrap_or_else(|| "impl".to_owned()), |finder| {
            if let Some(token) = &item.unsafety {
                finder.record(token.span.start().line);
            }
            visit::visit_item_impl(finder, item);
        });
    }

    fn visit_item_trait(&mut self, item: &'ast syn::ItemTrait) {
        self.within(item.ident.to_string(), |finder| {
            if let Some(token) = &item.unsafety {
                finder.record(token.span.start().line);
            }
            visit::visit_item_trait(finder, item);
        });
    }

    fn visit_item_foreign_mod(&mut self, item: &'ast syn::ItemForeignMod) {
        self.within("extern".to_owned(), |finder| {
            finder.record(item.span().start().line);
            visit::visit_item_foreign_mod(finder, item);
        });
    }

    /// `#[unsafe(no_mangle)]` and its kind.
    fn visit_attribute(&mut self, attribute: &'ast syn::Attribute) {
        if attribute.path().is_ident("unsafe") {
            self.record(attribute.span().start().line);
        }
        visit::visit_attribute(self, attribute);
    }

    /// What a macro gets is not parsed: the word alone counts.
    fn visit_macro(&mut self, called: &'ast syn::Macro) {
        self.tokens(called.tokens.clone());
        visit::visit_macro(self, called);
    }
}

impl Finder<'_> {
    fn tokens(&mut self, tokens: proc_macro2::TokenStream) {
        for token in tokens {
            match token {
                proc_macro2::TokenTree::Ident(word) if word == "unsafe" => self.record(word.span().start().line),
                proc_macro2::TokenTree::Group(group) => self.tokens(group.stream()),
                _ => {}
            }
        }
    }
}

#[test]
fn every_form_is_found_with_its_reason() {
    let source = "\
struct Disk;
impl Disk {
    fn open() {
        // The word unsafe { } in a comment or a \"string\" is none.
        let text = \"unsafe { }\";
        // SAFETY: one line
        // and another.
        let status =
            unsafe { call() };
        unsafe { call() };
        match status {
            // SAFETY: an arm's own.
            0 => unsafe { call() },
            _ => drop(|| unsafe { call() }),
        }
    }
}
// SAFETY: a marker.
unsafe impl Send for Disk {}
unsafe fn raw() {}
fn inside() {
    // SAFETY: too far away.

    assert!(unsafe { call() });
}
#[unsafe(no_mangle)]
fn exported() {}
unsafe extern \"system\" {}
";
    let found: Vec<(String, usize, bool)> =
        find_unsafe(source).unwrap().into_iter().map(|one| (one.function, one.line, one.has_reason)).collect();
    let expected = [
        ("Disk::open", 9, true),
        ("Disk::open", 10, false),
        ("Disk::open", 13, true),
        ("Disk::open", 14, false),
        ("Disk", 19, true),
        ("raw", 20, false),
        ("inside", 24, false),
        ("exported", 26, false),
        ("extern", 28, false),
    ];
    assert_eq!(found, expected.map(|(function, line, has_reason)| (function.to_owned(), line, has_reason)));
}

#[test]
fn rows_of_the_list_are_read() {
    let text = "# Title\n\n| file | function |\n|---|---|\n| `a.rs` | `A::b` | 2 | because of this |\n";
    assert_eq!(read_list(text), BTreeMap::from([(("a.rs".to_owned(), "A::b".to_owned()), 2)]));
}
