//! Tests of `nbd::uri`: each accepted form, each refusal with its own cause, and the
//! round trip of any value through its text.

use proptest::prelude::*;

use super::*;

fn parse(text: &str) -> NbdUri {
    text.parse().unwrap_or_else(|e| panic!("{text}: {e}"))
}

fn refuse(text: &str) -> UriError {
    match text.parse::<NbdUri>() {
        Err(error) => error,
        Ok(uri) => panic!("{text} was taken as {uri:?}"),
    }
}

fn tcp(host: Host, port: u16) -> Address {
    Address::Tcp { host, port }
}

fn check(cases: &[(&str, Address, &str)]) {
    for (text, address, export) in cases {
        let uri = parse(text);
        assert_eq!(uri.address, *address, "{text}");
        assert_eq!(uri.export, *export, "{text}");
    }
}

fn at(name: &str) -> Address {
    tcp(Host::Name(name.to_owned()), DEFAULT_PORT)
}

#[test]
fn a_mark_is_of_what_the_uri_means() {
    let mark = |text: &str| text.parse::<NbdUri>().unwrap().mark();
    assert_eq!(mark("nbd://h/x"), mark("NBD://h:10809/x"));
    assert_ne!(mark("nbd://h/x"), mark("nbd://h/y"));
    assert!(mark("nbd://h/x").differs(mark("nbd://g/x")));
}

#[test]
fn exports_are_what_follows_the_first_slash() {
    check(&[
        (
            "nbd://example.com:10809/export",
            at("example.com"),
            "export",
        ),
        ("nbd://example.com/disk", at("example.com"), "disk"),
        ("nbd://example.com/", at("example.com"), ""),
        ("nbd://example.com", at("example.com"), ""),
        ("nbd://example.com//disk", at("example.com"), "/disk"),
        (
            "nbd://example.com/hello%20world",
            at("example.com"),
            "hello world",
        ),
        ("nbd://h/%C3%A4?", at("h"), "ä"),
    ]);
}

#[test]
fn hosts_are_names_or_addresses() {
    let link_local = Host::V6("fe80::1".parse().unwrap(), Some("eth0".into()));
    let v6 = Host::V6(Ipv6Addr::LOCALHOST, None);
    let v4 = Host::V4([10, 0, 0, 1].into());
    check(&[
        ("NBD://10.0.0.1:1/a/b", tcp(v4, 1), "a/b"),
        ("nbd://[::1]/x", tcp(v6.clone(), 10809), "x"),
        ("nbd://[::1]:65535", tcp(v6, 65535), ""),
        ("nbd://[fe80::1%25eth0]/x", tcp(link_local, 10809), "x"),
    ]);
}

#[test]
fn unix_sockets_have_paths_or_abstract_names() {
    let unix = |path: &str| Address::Unix { path: path.into() };
    check(&[
        ("nbd+unix:///disk?socket=/run/s", unix("/run/s"), "disk"),
        ("nbd+unix://?socket=/run/a%20b", unix("/run/a b"), ""),
        ("nbd+unix:///?socket=%00/abstract", unix("\0/abstract"), ""),
    ]);
}

#[test]
fn each_malformed_thing_has_its_own_error() {
    use UriError as E;
    let s = |t: &str| t.to_owned();
    let cases = [
        ("", E::Empty),
        ("nbd:host:10809", E::NoScheme(s("nbd:host:10809"))),
        ("http://h/x", E::UnknownScheme(s("http"))),
        ("nbds://h/x", E::TlsLater(s("nbds"), "nbd")),
        (
            "NBDS+unix:///?socket=/s",
            E::TlsLater(s("nbds+unix"), "nbd+unix"),
        ),
        ("nbd://h/x?tls-type=psk", E::TlsParameter(s("tls-type"))),
        ("nbd://h/a b", E::BadCharacter(' ', 9, s("%20"))),
        ("nbd://h/ä", E::BadCharacter('ä', 8, s("%C3%A4"))),
        ("nbd://h/a%2", E::BadPercent(9)),
        ("nbd://h/a%zz", E::BadPercent(9)),
        ("nbd://h/a#b", E::Fragment(s("b"))),
        ("nbd://joe@h/a", E::UserInfo(s("joe"))),
        ("nbd:///a", E::MissingHost),
        ("nbd://:10809/a", E::MissingHost),
        ("nbd://[::1/a", E::UnclosedBracket),
        ("nbd://[::g]/a", E::BadIpv6(s("::g"))),
        ("nbd://[fe80::1%25]/a", E::BadIpv6(s("fe80::1%25"))),
        ("nbd://::1/a", E::BareIpv6(s("::1"))),
        ("nbd://h:0/a", E::BadPort(s("0"))),
        ("nbd://h:65536/a", E::BadPort(s("65536"))),
        ("nbd://h:+1/a", E::BadPort(s("+1"))),
        ("nbd://[::1]x/a", E::BadPort(s("x"))),
        ("nbd://h:/a", E::EmptyPort),
        ("nbd+unix://h/a?socket=/s", E::HostWithUnix(s("h"))),
        ("nbd+unix:///a", E::MissingSocket),
        ("nbd+unix:///a?socket=", E::EmptySocket),
        ("nbd://h/a?socket=/s", E::SocketWithTcp),
        ("nbd+unix:///a?socket=s", E::RelativeSocket(s("s"))),
        ("nbd+unix:///a?socket=/s%00", E::SocketNul),
        (
            "nbd+unix:///a?socket=/s&socket=/t",
            E::DuplicateParameter(s("socket")),
        ),
        (
            "nbd+unix:///a?socket=/s&x-y=1",
            E::UnknownParameter(s("x-y")),
        ),
        ("nbd://h/%ff", E::ExportNotUtf8),
        ("nbd://h/a%00b", E::ExportNul),
    ];
    for (text, error) in cases {
        assert_eq!(refuse(text), error, "{text}");
    }
    assert!(matches!(refuse("nbd://10.0.0.256/a"), E::BadHost(h, _) if h == "10.0.0.256"));
    assert!(matches!(refuse("nbd://a..b/a"), E::BadHost(..)));
    assert!(matches!(refuse("nbd://a(b/a"), E::BadHost(..)));
    let long = format!("nbd+unix:///a?socket=/{}", "s".repeat(SOCKET_PATH_MAX));
    assert_eq!(refuse(&long), E::SocketTooLong(SOCKET_PATH_MAX + 1));
    let long = format!("nbd://h/{}", "e".repeat(EXPORT_NAME_MAX + 1));
    assert_eq!(refuse(&long), E::ExportTooLong(EXPORT_NAME_MAX + 1));
}

#[test]
fn tls_is_refused_in_the_contracts_words() {
    let text = refuse("nbds://h/x").to_string();
    assert!(text.contains("TLS is not supported yet"), "{text}");
    assert!(text.contains("a later step"), "{text}");
    assert!(text.contains("use nbd://"), "{text}");
}

fn any_host() -> impl Strategy<Value = Host> {
    prop_oneof![
        "[a-z][a-z0-9_-]{0,20}(\\.[a-z0-9-]{1,20}){0,3}".prop_map(Host::Name),
        any::<u32>().prop_map(|n| Host::V4(n.into())),
        (any::<u128>(), proptest::option::of("[a-z][a-z0-9.-]{0,10}"))
            .prop_map(|(n, zone)| Host::V6(n.into(), zone)),
    ]
}

fn any_address() -> impl Strategy<Value = Address> {
    let path = proptest::collection::vec(1u8..=255, 0..SOCKET_PATH_MAX);
    prop_oneof![
        (any_host(), 1u16..).prop_map(|(host, port)| Address::Tcp { host, port }),
        (path, any::<bool>()).prop_map(|(mut path, named)| {
            path.insert(0, if named { b'/' } else { 0 });
            Address::Unix {
                path: PathBuf::from(std::ffi::OsString::from_vec(path)),
            }
        }),
    ]
}

proptest! {
    #[test]
    fn any_value_survives_its_text(address in any_address(), export in "[^\\x00]{0,40}") {
        let uri = NbdUri { address, export };
        let text = uri.to_string();
        prop_assert!(text.is_ascii());
        prop_assert_eq!(text.parse::<NbdUri>(), Ok(uri), "{}", text);
    }

    #[test]
    fn no_text_makes_the_parser_panic(text in "\\PC*", tail in "[ -~]{0,40}") {
        let _ = text.parse::<NbdUri>();
        let _ = format!("nbd://{tail}").parse::<NbdUri>();
        let _ = format!("nbd+unix:///{tail}").parse::<NbdUri>();
    }
}
