// The script of calls by connect-go: Connect, gRPC-Web and gRPC.
package main

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"

	"connectrpc.com/connect"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/anypb"

	v1 "quill.example/interop/gen/inference/v1"
	"quill.example/interop/gen/inference/v1/inferencev1connect"
	"quill.example/interop/internal/script"
)

func main() {
	given := script.ParseFlags()
	url, cutURL := given.URL, given.CutURL
	if given.Protocol == "grpc" {
		url, cutURL, given.HTTP2 = "http://"+given.Address, "http://"+given.CutAddress, true
	}
	fullDuplex := given.HTTP2 && given.Protocol != "grpc-web"
	script.Run(client(given, url), client(given, cutURL), given.Protocol, fullDuplex)
}

// client makes the generated clients of one server. connect-go sends plain requests unless told otherwise.
func client(given script.Flags, url string) script.Client {
	var protocols http.Protocols
	protocols.SetHTTP1(!given.HTTP2)
	protocols.SetUnencryptedHTTP2(given.HTTP2)
	transport := &http.Client{Transport: &listening{&http.Transport{Protocols: &protocols}, given.Key}}
	var options []connect.ClientOption
	switch given.Protocol {
	case "grpc":
		options = append(options, connect.WithGRPC())
	case "grpc-web":
		options = append(options, connect.WithGRPCWeb())
	}
	llm := inferencev1connect.NewLLMServiceClient(transport, url, options...)
	tensors := inferencev1connect.NewTensorServiceClient(transport, url, options...)
	gzip := inferencev1connect.NewLLMServiceClient(transport, url, append(options, connect.WithSendGzip())...)
	tokenize, tokenizeGzip := unary(llm.Tokenize), unary(gzip.Tokenize)
	return script.Client{
		Generate:       unary(llm.Generate),
		CancelGenerate: unary(llm.CancelGenerate),
		Embed:          unary(llm.Embed),
		ListModels:     unary(llm.ListModels),
		Infer:          unary(tensors.Infer),
		Tokenize: func(ctx context.Context, call *script.Call, request *v1.TokenizeRequest) (*v1.TokenizeResponse, error) {
			if call != nil && call.Gzip {
				return tokenizeGzip(ctx, call, request)
			}
			return tokenize(ctx, call, request)
		},
		StreamGenerate: func(ctx context.Context, request *v1.GenerateRequest) (script.Stream, error) {
			stream, err := llm.StreamGenerate(ctx, request)
			return serverStream{stream}, err
		},
		Session:     func(ctx context.Context) (script.Session, error) { return llm.Session(ctx) },
		StreamInfer: func(ctx context.Context) (script.Tensors, error) { return tensors.StreamInfer(ctx) },
		Status:      status,
	}
}

func unary[Q, R any](method func(context.Context, *Q) (*R, error)) script.Unary[Q, R] {
	return func(ctx context.Context, call *script.Call, request *Q) (*R, error) {
		if call == nil {
			call = &script.Call{}
		}
		ctx, info := connect.NewClientContext(context.WithValue(ctx, callKey{}, call))
		reply, err := method(ctx, request)
		if err == nil {
			call.Metadata = lower(info.ResponseHeader(), info.ResponseTrailer())
		}
		return reply, err
	}
}

type callKey struct{}

// listening adds the credentials, and hears how messages were compressed.
type listening struct {
	next http.RoundTripper
	key  string
}

func (l *listening) RoundTrip(request *http.Request) (*http.Response, error) {
	call, _ := request.Context().Value(callKey{}).(*script.Call)
	if call == nil || !call.Anonymous {
		request = request.Clone(request.Context())
		request.Header.Set("authorization", "Bearer "+l.key)
	}
	reply, err := l.next.RoundTrip(request)
	if err == nil && call != nil {
		call.RequestEncoding, call.ReplyEncoding = encoding(request.Header), encoding(reply.Header)
	}
	return reply, err
}

func encoding(header http.Header) string {
	return header.Get("content-encoding") + header.Get("connect-content-encoding") + header.Get("grpc-encoding")
}

type serverStream struct {
	stream *connect.ServerStreamForClient[v1.StreamGenerateResponse]
}

// Receive returns the next message, or how the stream ended.
func (s serverStream) Receive() (*v1.StreamGenerateResponse, error) {
	if s.stream.Receive() {
		return s.stream.Msg(), nil
	}
	if err := s.stream.Err(); err != nil {
		return nil, err
	}
	return nil, io.EOF
}

func status(err error) script.Status {
	var failed *connect.Error
	if !errors.As(err, &failed) {
		return script.Status{Code: codes.Unknown, Message: err.Error()}
	}
	told := script.Status{Code: codes.Code(failed.Code()), Message: failed.Message(), Metadata: lower(failed.Meta())}
	for _, detail := range failed.Details() {
		told.Details = append(told.Details, &anypb.Any{
			TypeUrl: "type.googleapis.com/" + detail.Type(),
			Value:   detail.Bytes(),
		})
	}
	return told
}

// lower joins headers under the keys that gRPC has.
func lower(headers ...http.Header) map[string][]string {
	all := map[string][]string{}
	for _, header := range headers {
		for key, values := range header {
			key = strings.ToLower(key)
			all[key] = append(all[key], values...)
		}
	}
	return all
}
